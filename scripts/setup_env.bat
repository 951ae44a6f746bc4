@echo off
rem Called by the other scripts: makes .venv in the project's folder once, installs what is missing, and sets
rem PROJECT, the project's folder, and PY, the interpreter. Usage: call "%~dp0setup_env.bat" [REQUIREMENTS_FILE]
rem PY may be a python.bat, as some version managers have: the scripts start it with call, or they would end with it.
rem LAFTER_PYTHON, a program's name or absolute path, is taken instead where it is set (an active conda environment:
rem set LAFTER_PYTHON=python); nothing is installed then. The folder that the user stands in is left alone.
rem A .venv that was cut off while it was made (it holds the file unfinished) is made anew.
for %%I in ("%~dp0..") do set "PROJECT=%%~fI"
set "TEST=import sys; sys.exit(sys.version_info < (3, 10))"
set "VENV=%PROJECT%\.venv"
if defined LAFTER_PYTHON goto own
if exist "%VENV%\unfinished" rmdir /s /q "%VENV%"
set "NAME=the interpreter of .venv"
set "PY=%VENV%\Scripts\python.exe"
if exist "%PY%" goto install
set "NAME=the interpreter for .venv"
set "PY=python"
call "%PY%" -c "%TEST%"
if %ERRORLEVEL% neq 0 goto refuse
echo making "%VENV%" and installing the requirements: once, PyTorch is large
if not exist "%VENV%" mkdir "%VENV%"
echo the next start makes .venv anew > "%VENV%\unfinished"
call "%PY%" -m venv "%VENV%"
if %ERRORLEVEL% neq 0 exit /b 1
del "%VENV%\unfinished"
set "NAME=the interpreter of .venv"
set "PY=%VENV%\Scripts\python.exe"
:install
"%PY%" -c "%TEST%"
if %ERRORLEVEL% neq 0 goto refuse
"%PY%" -c "import pip" 2>nul
if %ERRORLEVEL% neq 0 "%PY%" -m ensurepip >nul
"%PY%" -m pip install --quiet --disable-pip-version-check -r "%PROJECT%\requirements.txt"
if %ERRORLEVEL% neq 0 exit /b 1
if "%~1"=="" exit /b 0
"%PY%" -m pip install --quiet --disable-pip-version-check -r "%~1"
exit /b %ERRORLEVEL%
:own
set "NAME=LAFTER_PYTHON"
set "PY=%LAFTER_PYTHON:"=%"
call "%PY%" -c "%TEST%"
if %ERRORLEVEL% equ 0 exit /b 0
:refuse
echo error: %NAME% is "%PY%", which runs no Python 3.10 or newer; set LAFTER_PYTHON to one that does 1>&2
exit /b 1
