@echo off
rem CLIP's zero-shot accuracy: nothing is trained. --txt_cls is refused here: zero-shot has one template,
rem TEXT.ZERO_SHOT_TEMPLATE.
rem It sets --zero_shot and --resume auto.
rem     scripts\zero_shot.bat [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\zero_shot.bat demo
rem     scripts\zero_shot.bat emotion6 --root DATA --backbone ViT-L/14
rem Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
rem relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
rem end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
set DATASET=emotion6
set "FIRST=%~1"
if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=
call "%PY%" "%PROJECT%\LaFTer.py" --resume auto --zero_shot --dataset-config-file %DATASET% %*
exit /b %ERRORLEVEL%
