@echo off
rem LaFTer: zero-shot, the text classifier, then prompts tuned on its pseudo-labels, without labels.
rem --skip_finetune stops after the text classifier. Staged prompts: LaFTer_MultiPrompt.
rem It sets --resume auto alone; all else is as the data set's YAML and the defaults have it.
rem     scripts\LaFTer.bat [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\LaFTer.bat demo --epochs 3
rem     scripts\LaFTer.bat emotion6 --root DATA --skip_finetune
rem Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
rem relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
rem end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
set DATASET=emotion6
set "FIRST=%~1"
if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=
call "%PY%" "%PROJECT%\LaFTer.py" --resume auto --dataset-config-file %DATASET% %*
exit /b %ERRORLEVEL%
